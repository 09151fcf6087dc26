; Prints the text behind the code with OUTSB, which has one exit for one or more bytes, and a line with OUT of two bytes.
bits 16
org 0x1000

start:
    mov di, text
    xor cx, cx
.length:
    cmp byte [di], 0
    je .print
    inc di
    inc cx
    jmp .length
.print:
    mov si, text
    mov dx, 0xe9
    cld
    rep outsb
    mov ax, 'ok'
    out dx, ax
    mov ax, 42
    hlt

text:
