"""Other programs' files of weights and data, read without running anything in them.

This package is closed: it imports nothing of the project, so that what may touch a foreign file can be read in one
place. ``read.read`` is its only entrance (``avatar_jax.io.foreign.read`` is the same one with the project's errors).

| module | what it knows |
|---|---|
| ``limits`` | what reading may cost, and the two ways in which it ends early |
| ``archives`` | zip files, deflate |
| ``pickle_values``, ``pickle_machine``, ``pickle_instructions``, ``pickle_reader`` | pickles: programs for a machine |
| ``records``, ``meanings``, ``constructors`` | the names that a pickle may mention, and what comes of each |
| ``tree`` | from what a pickle built to arrays by name, without endless structures |
| ``torch_files``, ``numpy_files``, ``mat_files``, ``safetensors_files``, ``dlib_files`` | the containers |
| ``read`` | which of them a file is |

Every size that a file announces is compared with the bytes that are there before anything is allocated, and all
memory is charged to one ``Budget``. Arrays are views of the file where their numbers lie in it unpacked.
"""
