; The assignment's first guest: 42 in AX and at 0x400, then hlt.
bits 16
section .start exec
    mov ax, 42
    mov [0x400], ax
    hlt
