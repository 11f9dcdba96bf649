"""scikit-learn estimators over the fused kernels; they need scikit-learn, which the rest of the library does not.

`LogisticRegression` and `MLPClassifier` have the names, parameters, attributes and objectives of scikit-learn's:
changing the import is all that a pipeline, a grid search or a pickle needs. Input is dense: sparse matrices are refused
with scikit-learn's own TypeError.
"""

from fastsoftmax.sklearn._logistic import LogisticRegression
from fastsoftmax.sklearn._mlp import MLPClassifier

__all__ = ["LogisticRegression", "MLPClassifier"]
