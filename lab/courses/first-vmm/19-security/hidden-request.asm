; Chapter 19: a request that is itself outside of the memory, but for its first bytes.
bits 64
org 0x1000
PRINT equ 0xe9
COPY equ 0x40
REQUEST equ 0x30000
%macro request 3 ; source, destination, length
    mov rax, %1
    mov [REQUEST], rax
    mov rax, %2
    mov [REQUEST + 8], rax
    mov dword [REQUEST + 16], %3
    mov dword [REQUEST + 20], 0
    mov eax, REQUEST
    out COPY, eax
%endmacro
    mov edx, text
    call print
    mov qword [0x1ffff0], text
    mov qword [0x1ffff8], 0x40000
    mov eax, 0x1ffff0
    out COPY, eax
    mov edx, accepted
    call print
    hlt
print:
    mov al, [rdx]
    inc rdx
    test al, al
    jz printed
    out PRINT, al
    jmp print
printed:
    ret
accepted db "the VMM has accepted this", 10, 0
text:
