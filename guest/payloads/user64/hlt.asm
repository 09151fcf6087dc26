; Executes hlt, which ring 3 must not: #GP without an interrupt table, then a double fault, then a triple fault.
bits 64
section .start exec
    nop
    hlt
