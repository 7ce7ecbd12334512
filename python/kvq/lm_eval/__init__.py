"""lm-eval on a packed cache: the model `kvq-hf`, and tasks that run offline.

lm-eval finds no plugins by itself: start it as `python -m kvq.lm_eval run --model kvq-hf ...`.
"""
