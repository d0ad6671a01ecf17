"""What a reward model must beat: a linear model of word counts, where scikit-learn is installed.

TF-IDF of words and word pairs of an answer, and logistic regression on the difference of the two answers' (no intercept: turned round, a
pair must turn its odds round). Nothing of the prompt is seen, so what it finds is in the answers' wording alone.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence

import numpy as np

from luyen.core.records import Preference
from luyen.evaluation.reward_accuracy import accuracy, text

NEEDED = "sklearn"
STRENGTH = 1.0
"""Inverse strength of its regularisation, scikit-learn's usual one."""


def word_counts(train: Sequence[Preference], test: Sequence[Preference]) -> dict[str, float] | None:
    """Accuracy on the test pairs after learning from the others; None where scikit-learn is not installed."""
    if importlib.util.find_spec(NEEDED) is None or not train:
        return None
    texts = importlib.import_module(f"{NEEDED}.feature_extraction.text")
    linear = importlib.import_module(f"{NEEDED}.linear_model")
    counts = texts.TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
    counts.fit([text(answer) for pair in train for answer in (pair.chosen, pair.rejected)])
    learned, asked = ([counts.transform([text(pair.chosen) for pair in pairs]) - counts.transform([text(pair.rejected) for pair in pairs])
                       for pairs in (train, test)])  # fmt: skip
    sign = np.where(np.arange(len(train)) % 2, 1.0, -1.0)  # half of them turned round, so that there are two classes
    model = linear.LogisticRegression(C=STRENGTH, fit_intercept=False, max_iter=1000).fit(learned.multiply(sign[:, None]).tocsr(), sign)
    scores = model.decision_function(asked)
    return accuracy([0.5 if score == 0 else float(score > 0) for score in scores])
