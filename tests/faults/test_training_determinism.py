"""The same seed gives the same bits whatever the working folder, the hash seed or the environment."""

from training_faults import outcome, run_plan


def test_hash_seed_and_working_folder_do_not_matter(tmp_path):
    outcomes = []
    for number, hash_seed in enumerate(["0", "123"]):
        folder = tmp_path / f"chạy lại {number}"
        folder.mkdir()
        run_plan(folder, [{"folder": str(folder / "run"), "attempts": [None], "config": {"steps": 6}}], PYTHONHASHSEED=hash_seed)
        outcomes.append(outcome(folder / "run"))
    assert outcomes[0] == outcomes[1]
