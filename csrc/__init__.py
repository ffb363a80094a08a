"""What is compiled: C++ with a plain C interface, built on first use."""
