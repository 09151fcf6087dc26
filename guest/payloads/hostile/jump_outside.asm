; Jumps to an address with no memory behind it.
bits 64
section .start exec
    mov eax, 0xD0000000
    jmp rax
