"""Pure machine learning: tensors and arrays in, tensors and arrays out.

Nothing here knows Kedro, MLflow, YAML, paths or environment variables. Import the module you need:
this package imports none of them, so that `class_prior`, `selection`, `metrics` and
`networks.limits` stay free of torch.
"""
