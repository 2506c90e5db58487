import shutil

import pytest

from vlm.errors import Unusable
from vlm.eval import captions
from vlm.eval.captions import caption_scores, tokenized

PEOPLE = [
    ["A man rides a wave.", "Someone is surfing!", "A surfer on a big wave; he's happy."],
    ["Two dogs (brown ones) play.", "Dogs play in the grass", "A pair of dogs"],
    ["A red bus, parked.", "The bus\nis red.", "Bus no. 1 1/2 at a stop"],
]
ANSWERS = ["A man surfing a wave .", "", "a red bus parked in\u2028front of a stop"]
ZH = [["一个 女人 坐在 海边", "女人坐在椅子上。"], ["三个男孩在沙滩上玩球"]]


@pytest.fixture
def scorers():
    """Skip where Java or the packages are missing."""
    if shutil.which("java") is None:
        pytest.skip("no Java")
    pytest.importorskip("pycocoevalcap")
    pytest.importorskip("jieba")


def official(answers, people):
    """Run the package's own pipeline."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.meteor.meteor import Meteor
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    given = {i: [{"caption": answer}] for i, answer in enumerate(answers)}
    gts = {i: [{"caption": caption} for caption in of] for i, of in enumerate(people)}
    given, gts = PTBTokenizer().tokenize(given), PTBTokenizer().tokenize(gts)
    bleu = Bleu(4).compute_score(gts, given, verbose=0)[0]
    others = (Meteor(), Rouge(), Cider())
    return [*bleu, *(scorer.compute_score(gts, given)[0] for scorer in others)]


@pytest.mark.slow
def test_figures_are_those_of_coco_s_own_evaluation(scorers):
    answers = [answer.replace("\u2028", " ") for answer in ANSWERS]  # which would end a line of the tokenizer
    each, figures = caption_scores(ANSWERS, PEOPLE)
    assert list(figures["all"].values()) == pytest.approx([100 * value for value in official(answers, PEOPLE)])
    assert figures["all"]["CIDEr"] == pytest.approx(100 * sum(each) / 3)
    assert each[1] == 0.0 < min(each[0], each[2])


@pytest.mark.slow
def test_chinese_is_scored_by_words(scorers, monkeypatch):
    monkeypatch.setenv("LC_ALL", "C")  # a machine that speaks no UTF-8
    _, figures = caption_scores(["女人坐在椅子上", "三个男孩在沙滩上玩球。"], ZH, chinese=True)
    assert [figures["all"][name] for name in ("BLEU-4", "METEOR", "ROUGE-L")] == pytest.approx([100.0] * 3)
    assert tokenized(["女人 坐在 海边"]) == ["女人 坐在 海边"]


def test_what_is_missing_is_named(monkeypatch):
    monkeypatch.setattr(captions.shutil, "which", lambda name: None)
    monkeypatch.setattr(captions.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(Unusable, match=r"pycocoevalcap .*\[captions\].* and the package jieba .* and Java"):
        caption_scores(["a"], [["a"]], chinese=True)


def test_a_picture_without_captions_is_refused(scorers):
    with pytest.raises(Unusable, match="picture 1 has no caption"):
        caption_scores(["a", "b"], [["a"], []])
