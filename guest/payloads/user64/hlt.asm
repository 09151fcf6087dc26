; Halts, which ring 3 may not: #GP with no interrupt table, then a double, then a triple fault.
bits 64
section .start exec
    nop
    hlt
