"""Normal form, and the old Vietnamese encodings in both directions."""

import shutil
import subprocess
import time
import unicodedata

import pytest

from luyen.corpus import legacy_vietnamese
from luyen.corpus.normalise import normalise

VIETNAMESE = "Cộng hòa xã hội chủ nghĩa Việt Nam. Độc lập, tự do, hạnh phúc. Tôi yêu tiếng nước tôi từ khi mới ra đời"
TCVN3 = "Céng hßa x· héi chñ nghÜa ViÖt Nam. §éc lËp, tù do, h¹nh phóc. T«i yªu tiÕng n\xadíc t«i tõ khi míi ra ®êi"
VNI = "Coäng hoøa xaõ hoäi chuû nghóa Vieät Nam. Ñoäc laäp, töï do, haïnh phuùc. Toâi yeâu tieáng nöôùc toâi töø khi môùi ra ñôøi"


def test_characters() -> None:
    text = "a\r\nb\rc\u200bd\ufeffe\x00f\u00adg  \n\n\n\nh\u00a0i\u2003j\u2028k\x07\u202el"
    assert normalise(text)[0] == "a\nb\ncdefg\n\nh i j\nkl"


def test_nfc_and_what_must_stay() -> None:
    assert normalise(unicodedata.normalize("NFD", VIETNAMESE))[0] == VIETNAMESE
    kept = "می\u200cخواهم 👨\u200d👩\u200d👧\n    indented  twice\n\ttab"
    assert normalise(kept)[0] == kept
    assert normalise("x\ud800y")[0] == "x\ufffdy"
    assert normalise("a" + " " * 25_000 + "b")[0] == "a b"


def test_long_indentation_costs_linear_time() -> None:
    started = time.process_time()
    assert normalise(" " * 60_000 + "a \t\n\t \n b \n")[0] == " " * 60_000 + "a\n\n b"
    assert time.process_time() - started < 2


def test_normalise_is_idempotent() -> None:
    for text in (TCVN3, VNI, VIETNAMESE, "a \n \n \n b\u200b\n\n\n", "\ufeff\n\n x"):
        once = normalise(text)[0]
        assert normalise(once) == (once, None)


@pytest.mark.parametrize(("text", "name"), [(TCVN3, "tcvn3"), (VNI, "vni")])
def test_old_encodings_are_converted(text: str, name: str) -> None:
    assert normalise(text) == (VIETNAMESE, name)
    assert legacy_vietnamese.detect(text) == name


def test_vni_capitals() -> None:
    assert legacy_vietnamese.convert_vni("VIEÄT NAM, ÑÖÙC, Ñöùc, Ôû, ÑOÄC LAÄP") == "VIỆT NAM, ĐỨC, Đức, Ở, ĐỘC LẬP"


def test_tcvn3_table_against_an_independent_codec() -> None:
    """glibc's TCVN5712-1 has the same letters where TCVN3 has any."""
    if shutil.which("iconv") is None:
        pytest.skip("no iconv on this machine")
    for old, new in legacy_vietnamese._TCVN3.items():
        command = ["iconv", "-f", "TCVN5712-1", "-t", "UTF-8"]
        result = subprocess.run(command, input=b"x" + old.encode("latin-1") + b"x", capture_output=True, check=False)
        if result.returncode:
            pytest.skip("this iconv does not know TCVN5712-1")
        assert result.stdout.decode() == f"x{new}x"


def test_every_vietnamese_letter_has_one_vni_spelling() -> None:
    letters = {letter for letter in map(chr, range(0x1EA0, 0x1EFA))} | set("ăâđêôơưĂÂĐÊÔƠƯàáãèéìíòóõùúýÀÁÃÈÉÌÍÒÓÕÙÚÝĩũĨŨ")
    assert letters <= set(legacy_vietnamese._VNI.values())


@pytest.mark.parametrize(
    "text",
    [
        VIETNAMESE,
        "L'élève était déjà à l'école où le garçon naïf a été reçu par la maîtresse âgée, près du théâtre; ça coûte très cher à Noël",
        "für über schön Mädchen größer Straße müssen können wäre hätte Bücher Öl Ärger würde möchte",
        "São Paulo é a maior cidade; ações, não, irmãos, você, avó, avô, três, ninguém, também, português, difícil, açúcar, coração",
        "Съешь же ещё этих мягких французских булок, да выпей чаю. Ёлка, подъезд, объявление",
        "Årets största överraskning på sjön är när älgen går över ån, säger många människor på svenska språket i går på kvällen",
        "temperature 20°C ± 3, price £100, §5, ½ cup, 10²; © ® ¶ « » · µ ¡ ¿ × ÷ ±",
        "plain ASCII, nothing to see",
    ],
)
def test_other_texts_are_left_alone(text: str) -> None:
    assert legacy_vietnamese.detect(text) is None
    assert normalise(text)[0] == text
