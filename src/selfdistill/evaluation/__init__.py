"""What a representation is worth: k-NN, few-shot and linear protocols, and the geometry of features."""

from selfdistill.evaluation.features import evaluating, extract_features
from selfdistill.evaluation.few_shot import FewShotResult, few_shot_accuracy
from selfdistill.evaluation.knn import knn_accuracy, knn_predict, knn_sweep
from selfdistill.evaluation.label_fraction import label_fraction_accuracy
from selfdistill.evaluation.linear import linear_probe
from selfdistill.evaluation.linear_sgd import linear_probe_sgd

__all__ = [
    "FewShotResult",
    "evaluating",
    "extract_features",
    "few_shot_accuracy",
    "knn_accuracy",
    "knn_predict",
    "knn_sweep",
    "label_fraction_accuracy",
    "linear_probe",
    "linear_probe_sgd",
]
