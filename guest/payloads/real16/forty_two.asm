; The assignment's first guest: leaves 42 in AX and at 0x400, then halts.
bits 16
section .start exec
    mov ax, 42
    mov [0x400], ax
    hlt
