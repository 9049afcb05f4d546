"""Programs that make data to train on; run each as a file, ``python dataset/….py``."""
