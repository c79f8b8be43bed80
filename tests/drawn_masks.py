"""Masks of exams as the label loss takes them, made by a test."""

import torch


class Drawn:
    """Masks ``[n, K, s, s, s]`` of n exams; ``drawn [n, K]`` says which of them were drawn. Records what is asked."""

    def __init__(self, values, drawn):
        self.values, self.drawn, self.asked = values, drawn, []

    def masks(self, exams, structures):
        self.asked += [(e, k) for e in exams for k in structures]
        return torch.stack([torch.stack([self.values[e, k] for k in structures]) for e in exams])

    def put(self, tensor):
        return tensor
