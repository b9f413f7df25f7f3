"""Wav2Lip: lip synchronisation of a video (or a still portrait) to a sound track.

An implementation of our own from the published architecture. No weights come with it, and none of the original's code,
which is for personal, research and other non-commercial use only, like the published weights (trained on LRS2). Whoever
sets ``WAV2LIP_MODEL_PATH`` has to hold a licence for the weights it names.
"""
