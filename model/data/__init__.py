"""Training data: one file per source, all of them behind ``model.data.base.TrainingData``."""
