; Leaves 41 instead of 42.
bits 16
section .start exec
    mov ax, 41
    mov [0x400], ax
    hlt
