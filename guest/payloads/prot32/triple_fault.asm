; An undefined instruction with no interrupt table: #UD, then a double, then a triple fault.
bits 32
section .start exec
    nop
    ud2
