"""Word pieces: cut as the BERT's own tokenizer cuts, and saved whole."""

from __future__ import annotations

import copy
import json
import pickle

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from itm_lib.data import ImageCaptionDataset, RegionStore, Vocabulary, WordPieces, open_split
from itm_lib.data.captions import load_vocabulary
from itm_lib.data.dataset import pad_tokens
from itm_lib.files import InputError, read_json, write_json

PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "dog", "uni", "##cycle", "##s", ",", "red"]


def made(pieces=PIECES, max_tokens=None, **more) -> WordPieces:
    ids = {piece: place for place, piece in enumerate(pieces)}
    cut = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    cut.normalizer, cut.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    cut.post_processor = processors.BertProcessing(("[SEP]", ids["[SEP]"]), ("[CLS]", ids["[CLS]"]))
    cut.add_special_tokens([piece for piece in pieces if piece.startswith("[")])
    cut.enable_padding(length=16)      # as sentence encoders' tokenizers come
    cut.enable_truncation(4)
    return WordPieces(cut.to_str(), "[UNK]", "[PAD]", "[MASK]", max_tokens, **more)


@pytest.fixture
def pieces() -> WordPieces:
    return made()


def test_a_caption_is_cut_into_pieces_between_its_ends(pieces):
    ids = pieces.encode("A red dog, unicycles zebra")
    assert pieces.decode(ids) == ["[CLS]", "a", "red", "dog", ",", "uni", "##cycle", "##s", "[UNK]", "[SEP]"]
    assert ids == [2, 5, 11, 6, 10, 7, 8, 9, 1, 3]
    assert (len(pieces), pieces.words) == (12, tuple(PIECES)) and "##s" in pieces and "zebra" not in pieces
    assert (pieces.id("dog"), pieces.id("zebra"), pieces.id(pieces.mask)) == (6, 1, 4) and sorted(pieces.continues) == [8, 9]


def test_spans_point_at_the_pieces_and_the_words(pieces):
    text = "Red  Unicycles, a dog."
    cut = [text[start:end] for start, end in pieces.spans(text)]
    assert cut == ["", "Red", "Uni", "cycle", "s", ",", "a", "dog", ".", ""] and len(cut) == len(pieces.encode(text))
    words = Vocabulary.build(["red unicycles"])
    assert [text[start:end] for start, end in words.spans(text)] == ["", "Red", "Unicycles", "a", "dog", ""]
    assert len(words.spans(text)) == len(words.encode(text))


def test_saved_and_read_back_it_is_the_same(pieces, tmp_path):
    pieces.save(tmp_path / "v.json")
    found = load_vocabulary(tmp_path / "v.json")
    assert found == pieces and hash(found) == hash(pieces) and found.fingerprint == pieces.fingerprint
    assert found.encode("a unicycle") == pieces.encode("a unicycle")
    for other in (pickle.loads(pickle.dumps(pieces)), copy.deepcopy(pieces)):
        assert other == pieces and other.encode("a dog") == [2, 5, 6, 3]
    Vocabulary.build(["a dog"]).save(tmp_path / "words.json")
    assert load_vocabulary(tmp_path / "words.json") == Vocabulary.build(["a dog"]) != pieces


def test_the_fingerprint_tells_tokenizers_apart(pieces):
    other = made([*PIECES[:-2], "red", ","])
    cased = json.loads(pieces.tokenizer)
    cased["normalizer"]["lowercase"] = False
    cased = WordPieces(json.dumps(cased), "[UNK]", "[PAD]", "[MASK]")
    assert cased.words == pieces.words and cased.encode("A dog") != pieces.encode("A dog")
    assert len({each.fingerprint for each in (pieces, other, cased)}) == 3 and pieces != cased
    assert Vocabulary.build(["a b"]).fingerprint != Vocabulary.build(["b c"]).fingerprint


def test_the_dataset_reads_and_pads_captions_in_pieces(dataset_folder, tmp_path):
    pieces = made()
    train = open_split(dataset_folder, "train", vocabulary=pieces)
    assert train.vocabulary is pieces
    assert train.tokens == [pieces.encode(text) for text in train.texts]
    pieces.save(dataset_folder / "vocabulary.json")  # a folder may hold them, too
    assert open_split(dataset_folder, "val").vocabulary == pieces


def test_padding_is_told_by_the_mask_whatever_its_id():
    last = made([*PIECES[1:], "[PAD]"])
    tokens, mask = pad_tokens([last.encode("a red dog"), last.encode("dog")])
    assert tokens[1].tolist() == [1, 5, 2, 0, 0] and mask[1].tolist() == [True] * 3 + [False] * 2 and last.id("[UNK]") == 0
    assert last.decode(tokens[1].tolist()) == ["[CLS]", "dog", "[SEP]"] == last.decode([1, 5, 2, 11, 11])
    assert made().decode([2, 6, 3, 0]) == ["[CLS]", "dog", "[SEP]"]


@pytest.mark.parametrize("text", ["", "  ", "?!", ", ,"])
def test_an_empty_caption_is_refused_as_of_words(pieces, text):
    for vocabulary in (pieces, Vocabulary.build(["a dog"])):
        with pytest.raises(InputError) as error:
            vocabulary.encode(text)
        assert str(error.value) == f"the caption {text!r} has no word in it: remove it or write one"


def test_a_caption_that_is_too_long_is_named_with_its_split(dataset_folder):
    short = made(max_tokens=5)
    assert len(short.encode("a red dog")) == 5
    with pytest.raises(InputError, match=r"^the caption 'a red dog, a dog'\.\.\. has 8 tokens and this BERT reads 5 at most: shorten it$"):
        short.encode("a red dog, a dog")
    store = RegionStore(dataset_folder / "regions" / "train.h5")
    with pytest.raises(InputError, match="^caption c7 of split train: the caption 'a red dog, a dog'... has 8 tokens"):
        ImageCaptionDataset(store, ["a red dog, a dog"], [0], short, "train", caption_ids=["c7"])


@pytest.mark.parametrize(("change", "line"), [
    ({"tokenizer": None}, 'v.json is not a vocabulary of word pieces: expected {"kind": "pieces", "tokenizer": {...}, ...}'),
    ({"mask": 4}, "v.json is not a vocabulary of word pieces"), ({"max_tokens": "many"}, "v.json is not a vocabulary of word pieces"),
    ({"tokenizer": {}}, "v.json: the tokenizer cannot be read"),
    ({"tokenizer": {"version": "1.0", "model": {"type": "WordPiece"}}}, "v.json: the tokenizer cannot be read"),
    ({"kind": "letters"}, 'v.json is not a vocabulary: expected {"words": [...]}'),
])
def test_a_broken_file_is_one_line(pieces, change, line, tmp_path):
    path = tmp_path / "v.json"
    pieces.save(path)
    write_json(path, {**read_json(path), **change})
    with pytest.raises(InputError) as error:
        load_vocabulary(path)
    assert line in str(error.value) and "\n" not in str(error.value)


def test_a_file_that_is_cut_short_is_one_line(pieces, tmp_path):
    path = tmp_path / "v.json"
    pieces.save(path)
    path.write_text(path.read_text()[:500])
    with pytest.raises(InputError, match="v.json is not valid JSON .* cut short, make it again"):
        load_vocabulary(path)


def test_a_tokenizer_without_ends_is_refused(pieces):
    content = json.loads(pieces.tokenizer)
    content["post_processor"] = None
    with pytest.raises(InputError, match="puts 0 tokens around a caption, not one at its start and one at its end: give a BERT's$"):
        WordPieces(json.dumps(content))
    bare = WordPieces(pieces.tokenizer, None)
    with pytest.raises(InputError, match="^this tokenizer has no piece 'zebra', and none for what is unknown$"):
        bare.id("zebra")
