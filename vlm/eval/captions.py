"""Captions against the captions that people gave: BLEU, METEOR, ROUGE-L and CIDEr, as COCO's evaluation counts them.

The scorers are pycocoevalcap's own. The words are those of Stanford's PTB tokenizer and METEOR is a Java program, so
Java is needed; both are told that text is UTF-8, whatever this machine's language is.
Chinese is counted as AI Challenger does: full stops go, jieba finds the words, then as for English.
Source: Chen et al., Microsoft COCO Captions: Data Collection and Evaluation Server, 2015.
"""

import contextlib
import importlib.util
import io
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from vlm.errors import Unusable, require_success

LINE_BREAKS = re.compile(r"[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]")
UTF8 = "-Dfile.encoding=UTF-8"
MOST = "-Xmx2G"  # memory of the tokenizer


def check_captions(*, chinese: bool) -> None:
    """Check that all is there that captions are scored with.

    Raises Unusable, naming what is missing and how to get it.
    """
    wanted = {"pycocoevalcap": "pip install -e '.[captions]'"}
    wanted |= {"jieba": "pip install -e '.[captions]'"} if chinese else {}
    missing = [f"the package {name} ({how})" for name, how in wanted.items() if importlib.util.find_spec(name) is None]
    if shutil.which("java") is None:
        missing.append("Java (apt-get install default-jre-headless)")
    if missing:
        raise Unusable(f"captions are scored with {' and '.join(missing)}, which this machine lacks")


def caption_scores(
    answers: Sequence[str], references: Sequence[Sequence[str]], *, chinese: bool = False
) -> tuple[list[float], dict[str, dict[str, float | None]]]:
    """Return CIDEr of each answer, and the corpus's figures × 100.

    Raises Unusable if something is missing on this machine, or a question has no caption.
    """
    check_captions(chinese=chinese)
    for number, captions in enumerate(references):
        if not captions:
            raise Unusable(f"picture {number} has no caption to compare with")
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.meteor.meteor import Meteor
    from pycocoevalcap.rouge.rouge import Rouge

    if chinese:
        answers = [_words(answer) for answer in answers]
        references = [[_segmented(caption) for caption in captions] for captions in references]
    flat = tokenized([*answers, *(caption for captions in references for caption in captions)])
    given = {number: [text] for number, text in enumerate(flat[: len(answers)])}
    rest = iter(flat[len(answers) :])
    people = {number: [next(rest) for _ in captions] for number, captions in enumerate(references)}
    with _utf8(), contextlib.redirect_stdout(io.StringIO()):  # BLEU prints its lengths
        bleu, _ = Bleu(4).compute_score(people, given, verbose=0)
        meteor, _ = Meteor().compute_score(people, given)
        rouge, _ = Rouge().compute_score(people, given)
        cider, each = Cider().compute_score(people, given)
    figures = {f"BLEU-{n}": 100 * value for n, value in enumerate(bleu, start=1)}
    figures |= {"METEOR": 100 * meteor, "ROUGE-L": 100 * float(rouge), "CIDEr": 100 * float(cider)}
    return [float(value) for value in each], {"all": figures}


def tokenized(captions: Sequence[str]) -> list[str]:
    """Return captions in lower case, words and marks apart, punctuation left out.

    Raises Unusable if Java fails, Hindered if it is killed.
    """
    from pycocoevalcap.tokenizer import ptbtokenizer

    jar = Path(ptbtokenizer.__file__).with_name(ptbtokenizer.STANFORD_CORENLP_3_4_1_JAR)
    command = ["java", UTF8, MOST, "-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines"]
    lines = "\n".join(LINE_BREAKS.sub(" ", caption) for caption in captions) + "\n"
    found = subprocess.run(
        [*command, "-lowerCase"], input=lines, capture_output=True, encoding="utf-8", errors="replace"
    )
    require_success(found, "the tokenizer of captions failed")
    rows = found.stdout.split("\n")[:-1]
    if len(rows) != len(captions):
        raise Unusable(f"the tokenizer of captions failed: {len(rows)} lines came back for {len(captions)}")
    return [" ".join(word for word in row.rstrip().split(" ") if word not in ptbtokenizer.PUNCTUATIONS) for row in rows]


def _words(caption: str) -> str:
    """Return a Chinese caption with spaces between its words."""
    import jieba

    jieba.setLogLevel("WARNING")
    return " ".join(jieba.cut(caption.strip().replace("。", "")))


def _segmented(caption: str) -> str:
    """Return a reference's words; AI Challenger's own references have spaces between theirs already."""
    return caption if " " in caption.strip() else _words(caption)


@contextlib.contextmanager
def _utf8() -> Iterator[None]:
    """Have the Java programs that libraries start read and write UTF-8."""
    before = os.environ.get("JAVA_TOOL_OPTIONS")
    os.environ["JAVA_TOOL_OPTIONS"] = f"{before or ''} {UTF8}".strip()
    try:
        yield
    finally:
        if before is None:
            del os.environ["JAVA_TOOL_OPTIONS"]
        else:
            os.environ["JAVA_TOOL_OPTIONS"] = before
