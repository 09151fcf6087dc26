; Returns from its entry point, although it was not called.
bits 64
section .start exec
    ret
