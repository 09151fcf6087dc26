; Prints the sum in 32-bit code.
%include "sum.inc"
    READ_SUM
    cli
    lgdt [gdt.pointer]
    mov edx, cr0
    or dl, 1
    mov cr0, edx
    jmp dword 8:wide

bits 32
wide:
    mov edx, 16
    mov ss, edx
    mov esp, 0x8000
    movzx eax, ax
    mov ebx, 10
    xor ecx, ecx
divide:
    xor edx, edx
    div ebx
    push edx
    inc ecx
    test eax, eax
    jnz divide
print:
    pop eax
    add al, '0'
    out 0xe9, al
    loop print
    mov al, 10
    out 0xe9, al
    hlt

align 8
gdt:
    dq 0
    dq 0x00cf9a000000ffff
    dq 0x00cf92000000ffff
.pointer:
    dw $ - gdt - 1
    dd gdt
