"""Operators of the namespace `zoo`: schema, reference, fake and autograd, one file per operator."""
