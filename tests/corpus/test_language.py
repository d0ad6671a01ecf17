"""Language identification and its restriction."""

import pytest

from luyen.core.errors import ConfigError
from luyen.corpus.language import detect, identifier, sample

TEXTS = {
    "vi": "Trí tuệ nhân tạo đang thay đổi cách chúng ta làm việc và học tập mỗi ngày ở Việt Nam.",
    "ru": "Искусственный интеллект меняет то, как мы работаем и учимся каждый день.",
    "en": "Artificial intelligence is changing how we work and learn every day of the year.",
    "fr": "L'intelligence artificielle change notre façon de travailler et d'apprendre chaque jour.",
}


@pytest.mark.parametrize("language", TEXTS)
def test_languages(language: str) -> None:
    found, probability = detect(TEXTS[language])
    assert found == language and 0.5 < probability <= 1


def test_restriction_chooses_among_the_listed_and_does_not_leak() -> None:
    assert detect(TEXTS["fr"], ("vi", "ru", "en"))[0] in ("vi", "ru", "en")
    assert detect(TEXTS["fr"])[0] == "fr"


def test_code_does_not_decide() -> None:
    text = TEXTS["vi"] + "\n```python\n" + "import numpy as np\nfor the_item in range(10): return that\n" * 30 + "```\n"
    assert detect(text)[0] == "vi"


def test_sample_is_bounded_and_linear() -> None:
    assert len(sample("xin chào " * 200_000)) < 3000
    assert len(sample("a" * 400_000)) < 3000


def test_unknown_code() -> None:
    with pytest.raises(ConfigError, match="ISO 639-1"):
        identifier(("vn",))
