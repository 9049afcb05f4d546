"""Making a stage-2 set as the paper did: describe, polish, filter, review → ``cc_sbu_align``.

Source: MiniGPT-4's paper, section 3.2; settings of the authors' own script.
"""
