; Returns from its entry point, where nobody has called it.
bits 64
section .start exec
    ret
