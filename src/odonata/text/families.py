"""Tokenizers of published families, made from the files that their authors publish."""

import gzip
from pathlib import Path
from typing import Literal

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from odonata.errors import DataError
from odonata.text.cleaning import Cleaning
from odonata.text.sentencepiece import Piece, SentencePieceModel, read_sentencepiece
from odonata.text.tokenizer import Tokenizer, TokenizerRules, read_backend

# openai/CLIP simple_tokenizer.py; HF's `[\p{L}]+` and `[\p{N}]` are the same classes.
_CLIP_SPLIT = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_CLIP_MERGES = 49152 - 256 - 2


def clip_tokenizer(merges_path: str | Path, context_length: int = 77) -> Tokenizer:
    """Make CLIP's tokenizer (ids as in openai/CLIP, padding 0).

    Args:
        merges_path: ``bpe_simple_vocab_16e6.txt.gz``, or its unpacked text.
        context_length: ids per caption.

    Raises:
        DataError: the file is missing or is not CLIP's merges.
    """
    path = Path(merges_path)
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    # The first line is a heading, and the file has more merges than the vocabulary takes.
    lines = raw.decode("utf-8", errors="replace").split("\n")[1 : _CLIP_MERGES + 1]
    merges = [(parts[0], parts[1]) for parts in map(str.split, lines) if len(parts) == 2]
    if len(merges) != _CLIP_MERGES:
        raise DataError(f"{path}: CLIP's vocabulary has {_CLIP_MERGES} merges, this file gives {len(merges)}")
    alphabet = byte_alphabet()
    tokens = [*alphabet, *(symbol + "</w>" for symbol in alphabet), *(left + right for left, right in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {token: index for index, token in enumerate(tokens)}
    backend = tokenizers.Tokenizer(
        models.BPE(vocab, merges, end_of_word_suffix="</w>", unk_token="<|endoftext|>", fuse_unk=False)
    )
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_CLIP_SPLIT), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    # A word's end is a space; written as the byte alphabet writes a space, for the byte decoder that follows.
    backend.decoder = decoders.Sequence([decoders.Replace("</w>", "Ġ"), decoders.ByteLevel()])
    backend.add_special_tokens(["<|startoftext|>", "<|endoftext|>"])
    end = vocab["<|endoftext|>"]
    return Tokenizer(backend, TokenizerRules("clip", context_length, eos_id=end, pad_id=0, bos_id=end - 1))


def wordpiece_tokenizer(vocab_path: str | Path, lowercase: bool = True, context_length: int = 32) -> Tokenizer:
    """Make BERT's tokenizer, as FLIP, ALBEF and BLIP use it: [CLS] caption [SEP], padded with [PAD].

    Args:
        vocab_path: ``vocab.txt``, one token a line.
        lowercase: lower-case and strip accents: true for the uncased vocabularies.
        context_length: ids per caption; 32 in FLIP.

    Raises:
        DataError: the file is missing or lacks one of BERT's special tokens.
    """
    path = Path(vocab_path)
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    tokens = lines[:-1] if lines[-1] == "" else lines
    vocab = {token.rstrip("\r"): index for index, token in enumerate(tokens)}
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    if missing := [token for token in special if token not in vocab]:
        raise DataError(f"{path}: not a BERT vocabulary: it lacks {', '.join(missing)}")
    backend = tokenizers.Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=True, strip_accents=None, lowercase=lowercase
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##")
    backend.add_special_tokens([token for token in (*special, "[MASK]") if token in vocab])
    rules = TokenizerRules("bert", context_length, vocab["[SEP]"], vocab["[PAD]"], bos_id=vocab["[CLS]"])
    return Tokenizer(backend, rules)


def sentencepiece_tokenizer(
    model_path: str | Path, family: Literal["siglip", "siglip2", "none"] = "siglip", context_length: int = 64
) -> Tokenizer:
    """Make a tokenizer from a SentencePiece model file, unigram or BPE, without the sentencepiece package.

    Args:
        model_path: the ``.model`` file.
        family: "siglip" cleans as big_vision does and pads with the end id; "siglip2" (Gemma's vocabulary) lower-cases
            and pads with the padding id; "none" leaves the text and pads as "siglip2". No family adds a start id.
        context_length: ids per caption. SigLIP's embeddings are right at 64 only.

    Raises:
        DataError: the file is missing or damaged, or has no end piece.
    """
    model = read_sentencepiece(model_path)
    ids = {piece.text: index for index, piece in enumerate(model.pieces)}
    if model.eos_piece not in ids:
        raise DataError(f"{model_path}: the vocabulary has no end piece {model.eos_piece!r}")
    eos_id = ids[model.eos_piece]
    pad_id = eos_id if family == "siglip" else ids.get(model.pad_piece, eos_id)
    return Tokenizer(_sentencepiece_backend(model), TokenizerRules(family, context_length, eos_id, pad_id))


def tokenizer_json(
    path: str | Path,
    *,
    context_length: int,
    eos_token: str,
    pad_token: str | None = None,
    bos_token: str | None = None,
    cleaning: Cleaning = "none",
) -> Tokenizer:
    """Make a tokenizer from a ``tokenizer.json`` that another library wrote.

    Args:
        path: the file.
        context_length: ids per caption.
        eos_token: the token that ends a caption.
        pad_token: the token that fills up; None for ``eos_token``.
        bos_token: the token that starts a caption; None for none.
        cleaning: what is done before the file's own normaliser.

    Raises:
        DataError: the file is missing or damaged, or lacks one of the tokens.
    """
    backend = read_backend(path)

    def index(token: str) -> int:
        found = backend.token_to_id(token)
        if found is None:
            raise DataError(f"{path}: the vocabulary has no token {token!r}")
        return found

    start = None if bos_token is None else index(bos_token)
    end = index(eos_token)
    padding = end if pad_token is None else index(pad_token)
    return Tokenizer(backend, TokenizerRules(cleaning, context_length, end, padding, start))


def byte_alphabet() -> list[str]:
    """Return GPT-2's printable stand-ins for the 256 bytes, in the order of CLIP's and GPT-2's vocabularies."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [chr(code) for code in printable] + [chr(256 + extra) for extra in range(256 - len(printable))]


def _sentencepiece_backend(model: SentencePieceModel) -> tokenizers.Tokenizer:
    # Control, unknown and unused pieces are never found in text. The models of `tokenizers` look every entry up, so
    # these get a name that no text has after normalisation.
    hidden = (Piece.CONTROL, Piece.UNKNOWN, Piece.UNUSED)
    names = [f"\0{piece.text}" if piece.kind in hidden else piece.text for piece in model.pieces]
    byte_fallback = any(piece.kind == Piece.BYTE for piece in model.pieces)
    unknown = next((index for index, piece in enumerate(model.pieces) if piece.kind == Piece.UNKNOWN), None)
    if model.is_bpe:
        vocab = {name: index for index, name in enumerate(names)}
        unknown_token = None if unknown is None else names[unknown]
        backend = tokenizers.Tokenizer(
            models.BPE(vocab, model.merges(), unk_token=unknown_token, fuse_unk=True, byte_fallback=byte_fallback)
        )
    else:
        scored = [(name, piece.score) for name, piece in zip(names, model.pieces, strict=True)]
        backend = tokenizers.Tokenizer(models.Unigram(scored, unknown, byte_fallback))
    steps: list[normalizers.Normalizer] = []
    if model.charsmap:
        steps.append(normalizers.Precompiled(model.charsmap))
    if model.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex(" {2,}"), " "), normalizers.Strip()]
    if steps:
        backend.normalizer = normalizers.Sequence(steps)
    scheme = "always" if model.add_dummy_prefix else "never"
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme, split=False)
    space = decoders.Metaspace(replacement="▁", prepend_scheme=scheme, split=False)
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), space, decoders.Fuse()])
    if symbols := [piece.text for piece in model.pieces if piece.kind == Piece.USER_DEFINED]:
        backend.add_tokens([AddedToken(symbol, normalized=False) for symbol in symbols])
    return backend
