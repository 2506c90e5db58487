import pytest

from vlm.errors import Unusable
from vlm.model import fresh


def test_a_fresh_process_sees_what_this_one_does(tiny_model):
    texts = ["What? 中文 🙂", "<|im_start|>user\nx<|im_end|>\n", "a<image>b", ""]
    seen = fresh.Seen("LlavaProcessor", texts, 4, [1, 3, 16, 16])
    assert fresh.look(tiny_model, texts) == seen
    assert fresh.ask([tiny_model, tiny_model], texts) == [seen, seen]


def test_a_folder_that_cannot_be_loaded_is_refused_in_one_line(tmp_path):
    (tmp_path / "model").mkdir()
    with pytest.raises(Unusable, match="a fresh process cannot load model's processor: ") as fault:
        fresh.ask([tmp_path / "model"], [])
    assert "\n" not in str(fault.value)
