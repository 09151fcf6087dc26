; Breaks the protocol by pushing 'C' first, then waits forever for READY.
bits 64
section .start exec
    mov byte [0x11000], 'C'
    mov dword [0x100010], 1
.wait:
    cmp byte [0x100006], 4
    jne .wait
    hlt
