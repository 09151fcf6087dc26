; Chapter 18: prints with bytes and with blocks.
bits 64
org 0x1000
    mov esi, first
    mov ecx, first_end - first
    call block
    mov al, '!'
    out 0xe9, al
; A block of no bytes prints nothing.
    mov esi, first
    xor ecx, ecx
    call block
; The address stays, only the length is new.
    mov eax, 3
    out 0x34, eax
; A byte to the port of the length is not a length.
    mov al, 5
    out 0x34, al
    mov al, 10
    out 0xe9, al
; The text behind this code, up to its zero byte.
    mov esi, text
    mov ecx, esi
count:
    cmp byte [rcx], 0
    je counted
    inc ecx
    jmp count
counted:
    sub ecx, esi
    call block
    hlt
; Prints ECX bytes at RSI.
block:
    mov eax, esi
    out 0x30, eax
    mov eax, ecx
    out 0x34, eax
    ret
first db "blocks"
first_end:
text:
