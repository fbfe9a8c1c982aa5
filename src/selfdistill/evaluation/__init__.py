"""What a representation is worth: k-NN, few-shot and linear protocols, and the geometry of features."""

from selfdistill.evaluation.features import evaluating, extract_features
from selfdistill.evaluation.few_shot import FewShotResult, few_shot_accuracy
from selfdistill.evaluation.knn import knn_accuracy, knn_predict, knn_sweep
from selfdistill.evaluation.linear import linear_probe

__all__ = [
    "FewShotResult",
    "evaluating",
    "extract_features",
    "few_shot_accuracy",
    "knn_accuracy",
    "knn_predict",
    "knn_sweep",
    "linear_probe",
]
