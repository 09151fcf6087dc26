; Breaks the protocol: pushes 'C' on TX although the device expects 'R', then halts with 42.
bits 64
section .start exec
    mov byte [0x11000], 'C'
    mov dword [0x100010], 1
    mov eax, 42
    mov [0x400], rax
    hlt
