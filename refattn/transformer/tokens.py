"""Tokens: text to ids and back, by the ``tokenizer.json`` of a checkpoint and the library that reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from refattn.primitives.arguments import require

__all__ = ["load_tokenizer"]


def load_tokenizer(folder: str | Path, vocab_size: int) -> Any:
    """Load the tokenizer of a checkpoint.

    Parameters
    ----------
    folder : path
        With ``tokenizer.json``.
    vocab_size : int
        Of the model, whose embedding may have more rows than the tokenizer has tokens, but not fewer.

    Returns
    -------
    tokenizers.Tokenizer
        ``encode(text).ids`` and ``decode(ids)``.

    Raises
    ------
    ModuleNotFoundError
        Where the library is not installed: ``pip install 'refattn[tokens]'``.
    ValueError
        If there is no such file, it cannot be read, or it has a token that the model has no embedding for.
    """
    path = Path(folder) / "tokenizer.json"
    require(path.is_file(), f"{Path(folder).name} has no tokenizer.json; give token ids instead of text")
    try:
        from tokenizers import Tokenizer
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("text needs the tokenizers library: pip install 'refattn[tokens]'") from error
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # noqa: BLE001  the library raises bare Exception for a file it cannot parse
        raise ValueError(f"tokenizer.json cannot be read ({error})") from None
    largest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
    require(largest < vocab_size, f"tokenizer.json has token id {largest}, the model a vocabulary of {vocab_size}")
    return tokenizer
