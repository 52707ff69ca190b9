"""Videos with sentences, for training and evaluation.

``registry`` names the sources; each has a file that reads its annotations (``msrvtt``, ``vatex``, ``manifest``, ...).
``dataset`` joins annotations to video files, ``clips`` decodes them, and ``batches`` is what training consumes.
"""
