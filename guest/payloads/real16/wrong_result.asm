; Leaves 41 where 42 is asked for.
bits 16
section .start exec
    mov ax, 41
    mov [0x400], ax
    hlt
