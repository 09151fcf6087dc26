; Adds the two numbers that are appended to it at MSR 0xABC, and prints the sum that it reads there. A write to MSR 0xABD must
; raise #GP.
bits 64
org 0x1000
GP equ 13
SUM equ 0xABC
CONSTANT equ 0xABD

    mov rsp, 0x80000
    lgdt [gdt_register]
    mov eax, handler
    mov edi, idt + 16 * GP
    mov [rdi], ax
    mov word [rdi + 2], 8
    mov word [rdi + 4], 0x8E00
    lidt [idt_register]

    xor r15d, r15d
    mov esi, text
    call number
    mov r14d, no_write
    call add_number
    call number
    call add_number
    mov ecx, SUM
    mov r14d, no_read
    rdmsr
    test r15d, r15d
    jnz failed
    mov [sum], eax
    mov [sum + 4], edx

    mov ecx, CONSTANT
    mov r14d, no_constant
    rdmsr
    cmp eax, 0x55667788
    jne failed
    cmp edx, 0x11223344
    jne failed
    test r15d, r15d
    jnz failed
    mov r14d, no_fault
    wrmsr
    test r15d, r15d
    jz failed

    mov rax, [sum]
    mov r14d, digits
    mov edi, 10
.digit:
    xor edx, edx
    div rdi
    add dl, '0'
    dec r14d
    mov [r14], dl
    test rax, rax
    jnz .digit
failed:
    mov esi, r14d
.letter:
    lodsb
    test al, al
    jz .end
    out 0xE9, al
    jmp .letter
.end:
    hlt
    jmp .end

; Writes rax to the MSR.
add_number:
    mov rdx, rax
    shr rdx, 32
    mov ecx, SUM
    wrmsr
    test r15d, r15d
    jnz failed
    ret

; Returns in rax the decimal number at rsi, and moves rsi behind it and the byte after it.
number:
    xor eax, eax
.next:
    movzx ecx, byte [rsi]
    inc esi
    sub ecx, '0'
    cmp ecx, 9
    ja .done
    imul rax, rax, 10
    add rax, rcx
    jmp .next
.done:
    ret

; The handler of #GP: counts in r15, and skips the instruction, which has 2 bytes.
handler:
    inc r15d
    add rsp, 8
    add qword [rsp], 2
    iretq

no_write: db "WRMSR 0xabc raised #GP", 10, 0
no_read: db "RDMSR 0xabc raised #GP", 10, 0
no_constant: db "RDMSR 0xabd did not give 0x1122334455667788", 10, 0
no_fault: db "WRMSR 0xabd did not raise #GP", 10, 0
    align 8, db 0
sum: dq 0
gdt: dq 0, 0x00AF9B000000FFFF, 0x00CF93000000FFFF
gdt_register: dw gdt_register - gdt - 1
    dq gdt
idt_register: dw 16 * 32 - 1
    dq idt
    times 24 db 0
digits: db 10, 0
    align 16, db 0
idt: times 16 * 32 db 0
text:
