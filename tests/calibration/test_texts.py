"""Lines of text as samples: what each input of the model gets of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from onnxprune import Texts
from onnxprune.calibration.samples import read_samples
from onnxprune.calibration.streams import divide
from onnxprune.errors import CalibrationError, InputError
from onnxprune.model.inputs import InputSpec

tokenizers = pytest.importorskip("tokenizers")
INT = np.dtype(np.int64)
WORDS = ("[PAD]", "[CLS]", "[SEP]", "[UNK]", "a", "b", "c", "d")


def specs(*names: str, length: int | str = "length", batch: int | str = "N"):
    return tuple(InputSpec(name, INT, (batch, length)) for name in names)


BERT = specs("input_ids", "attention_mask", "token_type_ids")


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    """One number for each word, [CLS] in front and [SEP] behind; padded, as files often say."""
    made = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token="[UNK]")
    )
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    made.enable_padding(pad_id=0, pad_token="[PAD]", length=16)
    made.save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "texts.txt").write_text("a b\n\nc\nd d\na b c d\nb\n", encoding="utf-8")
    return tmp_path / "texts.txt"


def test_texts_of_one_length_share_batches_and_nothing_is_padded(
    file: Path, tokenizer: Path
) -> None:
    samples = read_samples(Texts(file, tokenizer), BERT)
    assert samples.count == 5
    found = [
        (numbers.tolist(), feed["input_ids"].tolist()) for numbers, feed in samples.numbered(2)
    ]
    assert found == [
        ([0, 2], [[1, 4, 5, 2], [1, 7, 7, 2]]),
        ([1, 4], [[1, 6, 2], [1, 5, 2]]),
        ([3], [[1, 4, 5, 6, 7, 2]]),
    ]
    assert all(feed["attention_mask"].all() for feed in samples.batches(2))


def test_they_are_held_out_by_their_numbers(file: Path, tokenizer: Path) -> None:
    fitted, held = divide(read_samples(Texts(file, tokenizer), BERT))
    assert [numbers.tolist() for numbers, _ in held.numbered(8)] == [[3]]
    assert sorted(n for numbers, _ in fitted.numbered(8) for n in numbers) == [0, 1, 2, 4]


@pytest.mark.parametrize("from_model", [True, False])
def test_a_length_pads_and_cuts(file: Path, tokenizer: Path, from_model: bool) -> None:
    length = 5 if from_model else "length"
    names = ("ids", "mask", "segment_ids", "position_ids")
    texts = Texts(file, tokenizer, length=None if from_model else 5)
    (feed,) = read_samples(texts, specs(*names, length=length)).batches(8)
    assert feed["ids"][[1, 3]].tolist() == [[1, 6, 2, 0, 0], [1, 4, 5, 6, 2]]
    assert feed["mask"][1].tolist() == [1, 1, 1, 0, 0]
    assert feed["segment_ids"][1].tolist() == [0] * 5
    assert feed["position_ids"][1].tolist() == [0, 1, 2, 3, 4]
    assert {array.dtype for array in feed.values()} == {INT}


def test_a_fixed_batch(file: Path, tokenizer: Path) -> None:
    samples = read_samples(Texts(file, tokenizer), specs("input_ids", batch=1))
    assert [len(numbers) for numbers, _ in samples.numbered(8)] == [1] * 5


def test_some_of_them(file: Path, tokenizer: Path) -> None:
    samples = read_samples(Texts(file, tokenizer, count=2), BERT)
    assert [feed["input_ids"].shape for feed in samples.batches(1)] == [(1, 4), (1, 4)]


def refusal(texts: Texts, inputs: tuple[InputSpec, ...] = BERT) -> str:
    with pytest.raises(CalibrationError) as caught:
        read_samples(texts, inputs)
    return str(caught.value)


class TestRefused:
    def test_other_inputs(self, file: Path, tokenizer: Path) -> None:
        inputs = (*BERT, InputSpec("pixels", np.dtype(np.float32), ("N", 3, 8, 8)))
        assert "nothing fills the input 'pixels'" in refusal(Texts(file, tokenizer), inputs)
        assert "none of the inputs 'mask' takes" in refusal(Texts(file, tokenizer), specs("mask"))

    def test_another_length_than_the_models(self, file: Path, tokenizer: Path) -> None:
        found = refusal(Texts(file, tokenizer, length=7), specs("input_ids", length=5))
        assert "give length=5" in found

    def test_files_that_are_none(self, tmp_path: Path, file: Path, tokenizer: Path) -> None:
        assert "cannot be read" in refusal(Texts(tmp_path / "none.txt", tokenizer))
        assert "is no tokenizer.json" in refusal(Texts(file, file))
        file.write_text("\n\n")
        assert "one text in each line" in refusal(Texts(file, tokenizer))

    def test_without_tokenizers_the_extra_is_named(
        self, file: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(__import__("sys").modules, "tokenizers", None)
        with pytest.raises(InputError, match=r"pip install 'onnxprune\[text\]'"):
            read_samples(Texts(file, tokenizer), BERT)

    def test_a_text_file_alone_says_which_option_is_missing(self, file: Path) -> None:
        with pytest.raises(CalibrationError, match="--tokenizer FILE"):
            read_samples(file, BERT)
