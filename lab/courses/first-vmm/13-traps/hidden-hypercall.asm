; Prints the text that is appended to it with one hypercall, tries wrong ones, and ends with the hypercall halt(9).
bits 64
org 0x1000
    mov esi, text
    xor ecx, ecx
.length:
    cmp byte [rsi + rcx], 0
    lea ecx, [rcx + 1]
    jne .length
    lea r13d, [rcx - 1]
    mov edx, 0x500

    mov r12d, no_number
    mov rdi, rsi
    mov eax, 77
    mov esi, r13d
    out dx, eax
    cmp rax, -38
    jne failed

    mov r12d, no_check
    mov edi, 0xFFFF0
    mov esi, 0x11               ; one byte too many
    mov eax, 1
    out dx, eax
    cmp rax, -14
    jne failed
    mov rdi, -16
    mov esi, 0x20               ; the sum of both is 0x10
    mov eax, 1
    out dx, eax
    cmp rax, -14
    jne failed
    mov edi, 0x1000
    mov rsi, -0x1000            ; the sum of both is 0
    mov eax, 1
    out dx, eax
    cmp rax, -14
    jne failed

    mov r12d, no_result
    mov edi, text
    mov esi, r13d
    mov eax, 1
    out dx, eax
    cmp rax, r13
    jne failed
    cmp edx, 0x500
    jne failed
    cmp edi, text
    jne failed

    mov r12d, no_halt
    mov edi, 9
    xor eax, eax
    out dx, eax
failed:
    mov esi, r12d
.letter:
    lodsb
    test al, al
    jz .end
    out 0xE9, al
    jmp .letter
.end:
    hlt
    jmp .end
no_number: db "hypercall 77 did not return -38 (ENOSYS)", 10, 0
no_check: db "print did not return -14 (EFAULT) for bytes that are not all in memory", 10, 0
no_result: db "print did not return the length in RAX, or it changed other registers", 10, 0
no_halt: db "the guest went on after the hypercall halt", 10, 0
text:
