; Chapter 19: an honest copy, and then copies over the request itself, which changes while it is performed.
bits 64
org 0x1000
PRINT equ 0xe9
COPY equ 0x40
REQUEST equ 0x30000
SOURCE equ 0x40000
TARGET equ 0x50000

; The text behind this code goes to TARGET by copies of one byte, and is printed from there.
    mov ebx, text
    mov ebp, TARGET
next:
    mov [REQUEST], rbx
    mov [REQUEST + 8], rbp
    mov dword [REQUEST + 16], 1
    mov dword [REQUEST + 20], 0
    mov eax, REQUEST
    out COPY, eax
    mov edx, not_done
    cmp dword [REQUEST + 20], 1
    jne say
    inc ebp
    inc ebx
    cmp byte [rbx - 1], 0
    jne next
    mov edx, TARGET
    call print
    mov edx, copied
    call print

; 64 bytes over the request, from its length on: a new length of 0x4ff.
    call prepare
    mov dword [SOURCE], 0x4ff
    mov dword [REQUEST + 16], 64
    mov qword [REQUEST + 8], REQUEST + 16
    mov eax, REQUEST
    out COPY, eax
    mov edx, incomplete
    cmp byte [REQUEST + 16 + 63], 0x11
    jne say
    mov edi, REQUEST + 16 + 64
    call check_guard
    mov edx, length
    jne say
; 64 bytes over the whole request: a new source.
    call prepare
    mov qword [SOURCE], SOURCE + 0x1000
    mov qword [SOURCE + 8], REQUEST
    mov dword [SOURCE + 16], 64
    mov dword [REQUEST + 16], 64
    mov qword [REQUEST + 8], REQUEST
    mov eax, REQUEST
    out COPY, eax
    mov edx, source
    cmp byte [REQUEST + 63], 0x11
    jne say
    mov edi, REQUEST + 64
    call check_guard
    jne say
    mov edx, changed
say:
    call print
    hlt

; Fills the source with 0x11 (from SOURCE + 0x1000 on with 0x22), and the memory at and behind the request with 0x5a.
prepare:
    mov edi, SOURCE
    mov ecx, 0x1000 / 8
    mov rax, 0x1111111111111111
    rep stosq
    mov ecx, 0x1000 / 8
    mov rax, 0x2222222222222222
    rep stosq
    mov edi, REQUEST
    mov ecx, 0x800 / 8
    mov rax, 0x5a5a5a5a5a5a5a5a
    rep stosq
    mov qword [REQUEST], SOURCE
    ret

; Sets ZF if the 0x500 bytes at RDI are 0x5a.
check_guard:
    mov ecx, 0x500
    mov al, 0x5a
    repe scasb
    ret

print:
    mov al, [rdx]
    inc rdx
    test al, al
    jz printed
    out PRINT, al
    jmp print
printed:
    ret

not_done db "is_done is not 1 after the copy", 10, 0
copied db "copied", 10, 0
incomplete db "the length changed during the copy, and less than 64 bytes were copied", 10, 0
length db "the length changed during the copy, and more than 64 bytes were copied", 10, 0
source db "the source changed during the copy, and other bytes were copied", 10, 0
changed db "the copy does what the request said at its start", 10, 0
text:
