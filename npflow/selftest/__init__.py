"""`python -m npflow.selftest`: does npflow compute right on this machine, and how fast?

examples    what each kernel is called with
comparison  a kernel of a backend against kernels/reference
training    short trainings against those of another backend
timing      how fast kernels move memory, and what the device could do
"""
