"""Feedback (off unless FEEDBACK_DIR is set): what an image really showed, told after its answer.

answers     recent answers, which wait for their true labels
pictures    reduced copies of unsure images, for training
feedback    both together
"""
