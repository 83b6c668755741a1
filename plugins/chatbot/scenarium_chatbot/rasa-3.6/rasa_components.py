"""The NLU component that is not Rasa's own. An archive trained with it loads wherever this file is on the module search path."""

from __future__ import annotations

from typing import Any

from rasa.engine.recipes.default_recipe import DefaultV1Recipe
from rasa.nlu.classifiers.logistic_regression_classifier import LogisticRegressionClassifier
from rasa.shared.nlu.constants import INTENT, INTENT_NAME_KEY, PREDICTED_CONFIDENCE_KEY, TEXT
from rasa.shared.nlu.training_data.message import Message

RANKING = "intent_ranking"


@DefaultV1Recipe.register(DefaultV1Recipe.ComponentType.INTENT_CLASSIFIER, is_trainable=True)
class AveragingLogisticRegression(LogisticRegressionClassifier):
    """Averages the confidences of a logistic regression with those of the classifier before it (DIET).

    The two err differently on short utterances, so their mean is right more often than either.
    """

    def process(self, messages: list[Message]) -> list[Message]:
        """Put the averaged ranking, highest first, in place of the one before. Words that no training example has tell it nothing: left as it was."""
        for message in messages:
            before = {entry[INTENT_NAME_KEY]: entry[PREDICTED_CONFIDENCE_KEY] for entry in message.get(RANKING) or ()}
            features = message.get_sparse_features(attribute=TEXT)[1]
            if features is None or not features.features.nnz:
                continue
            super().process([message])
            if not before:
                continue
            ranking: list[dict[str, Any]] = [
                {**entry, PREDICTED_CONFIDENCE_KEY: float((entry[PREDICTED_CONFIDENCE_KEY] + before.get(entry[INTENT_NAME_KEY], 0.0)) / 2)}
                for entry in message.get(RANKING)
            ]
            ranking.sort(key=lambda entry: -entry[PREDICTED_CONFIDENCE_KEY])
            message.set(INTENT, ranking[0], add_to_output=True)
            message.set(RANKING, ranking, add_to_output=True)
        return messages
