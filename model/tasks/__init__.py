"""The paper's other tasks, equal to the released classes: question answering, captioning, SimCLR, MAML."""
