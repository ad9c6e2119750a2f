"""Baselines that see labelled sequences only: each gives probabilities [N, C] of the test table's rows, or None where
it does not apply (other classes than splice sites, sequences of several lengths).

torch and scikit-learn are imported where they are used, so that the names of the baselines cost nothing.
"""

import warnings
from collections.abc import Callable

import numpy as np
import pandas as pd

from megadna.downstream.tasks import SPLICE_NAMES, Target

K = 5
CNN_EPOCHS, CNN_BATCH, CNN_LR = 10, 64, 1e-3
_CODES = np.full(256, 4, np.uint8)
_CODES[list(b"ACGT")] = range(4)


def two_letters(train: pd.DataFrame, test: pd.DataFrame, target: Target, seed: int) -> np.ndarray | None:
    """Donor where GT follows the middle of the window, acceptor where AG precedes it, negative otherwise."""
    if set(target.names) != set(SPLICE_NAMES):
        return None
    place = {name: number for number, name in enumerate(target.names)}
    called = []
    for text in test["sequence"]:
        middle = len(text) // 2
        donor, acceptor = text[middle : middle + 2] == "GT", text[middle - 2 : middle] == "AG"
        called.append(place["donor" if donor else "acceptor" if acceptor else "negative"])
    return np.eye(len(target.names))[called]


def position_weights(train: pd.DataFrame, test: pd.DataFrame, target: Target, seed: int) -> np.ndarray | None:
    """A position-weight matrix a class (one pseudocount), compared by Bayes' rule."""
    if pd.concat([train["sequence"], test["sequence"]]).str.len().nunique() > 1:
        return None
    from sklearn.naive_bayes import CategoricalNB

    model = CategoricalNB(min_categories=5).fit(_codes(train["sequence"]), train["target"])
    return _all_classes(model.predict_proba(_codes(test["sequence"])), model.classes_, target)


def kmer_logistic(train: pd.DataFrame, test: pd.DataFrame, target: Target, seed: int) -> np.ndarray | None:
    """Logistic regression on counts of all words of 1 to K bases."""
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import MaxAbsScaler

    counts = CountVectorizer(analyzer="char", ngram_range=(1, K), lowercase=False)
    model = make_pipeline(counts, MaxAbsScaler(), LogisticRegression(max_iter=500))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it may stop before the last digit
        model.fit(train["sequence"], train["target"])
    return _all_classes(model.predict_proba(test["sequence"]), model.classes_, target)


def small_cnn(train: pd.DataFrame, test: pd.DataFrame, target: Target, seed: int) -> np.ndarray | None:
    """Two convolutions over one-hot letters, trained from scratch; a window's middle is told by a ramp channel."""
    import torch
    from torch import nn

    torch.manual_seed(seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = nn.Sequential(
        nn.Conv1d(5, 64, 11, padding=5), nn.ReLU(), nn.MaxPool1d(2), nn.Conv1d(64, 64, 7, padding=3), nn.ReLU(),
        nn.AdaptiveMaxPool1d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(64, len(target.names)),
    ).to(device)  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=CNN_LR)
    inputs, labels = torch.from_numpy(_one_hot(train["sequence"])), torch.tensor(train["target"].to_numpy())
    for _ in range(CNN_EPOCHS):
        for rows in torch.randperm(len(inputs)).split(CNN_BATCH):
            loss = nn.functional.cross_entropy(model(inputs[rows].to(device)), labels[rows].to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    model.eval()
    with torch.inference_mode():
        batches = torch.from_numpy(_one_hot(test["sequence"])).split(256)
        parts = [model(rows.to(device)).softmax(-1).cpu() for rows in batches]
    return torch.cat(parts).numpy()


BASELINES: dict[str, Callable[[pd.DataFrame, pd.DataFrame, Target, int], np.ndarray | None]] = {
    "two-letter rule": two_letters,
    "position-weight matrix": position_weights,
    f"{K}-mer logistic regression": kmer_logistic,
    "small CNN from scratch": small_cnn,
}


def _codes(sequences: pd.Series) -> np.ndarray:
    return _CODES[np.frombuffer("".join(sequences).encode(), np.uint8)].reshape(len(sequences), -1)


def _all_classes(found: np.ndarray, classes: np.ndarray, target: Target) -> np.ndarray:
    full = np.zeros((len(found), len(target.names)))
    full[:, classes] = found
    return full


def _one_hot(sequences: pd.Series) -> np.ndarray:
    """[N, 5, longest]: A, C, G, T and the distance from the middle; shorter sequences are centred."""
    longest = int(sequences.str.len().max())
    codes = _codes(sequences.map(lambda text: text.center(longest, "N")))
    ramp = np.broadcast_to(np.abs(np.linspace(-1, 1, longest)), (len(codes), 1, longest))
    letters = np.eye(5, dtype=np.float32)[codes][:, :, :4].transpose(0, 2, 1)
    return np.concatenate([letters, ramp.astype(np.float32)], axis=1)
