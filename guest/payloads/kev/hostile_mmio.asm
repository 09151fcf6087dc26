; Uses the MMIO printer with invalid addresses and lengths, and with accesses of every width.
%include "kev.inc"
%macro refused 3                ; address, length, errno
    mov rax, %1
    mov [rbx], rax
    mov rax, %2
    mov [rbx + 8], rax
    mov dword [rbx + 0x10], 1
    mov rax, [rbx + 0x10]
    cmp rax, -%3
    must_be_equal
%endmacro
    begin64
    mov ebx, PRINTER
    refused 0xD0000000, 1, 14
    refused -1, 2, 14
    refused 0x1000, -1, 90
    mov dword [rbx + 4], 0x12345678 ; the upper half of the address
    mov rax, [rbx]
    mov rcx, 0x1234567800001000
    cmp rax, rcx
    must_be_equal
    mov word [rbx + 15], 0      ; across length and doorbell
    mov al, [rbx + 0x17]
    finish
.wrong:
    hlt
