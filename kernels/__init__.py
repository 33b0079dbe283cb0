"""Fused operations in three versions with the same names and signatures: reference, cpu, gpu."""
