"""Metrics, without a model or an image: `boxes`, `vqa` (short answers, AUC) and `captions`; `packages` they need."""
