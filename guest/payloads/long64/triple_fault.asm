; An undefined instruction without an interrupt table: #UD, then a double fault, then a triple fault.
bits 64
section .start exec
    nop
    ud2
