"""Instruction data that a text model writes from captions and boxes (LLaVA, arXiv:2304.08485, section 3)."""
