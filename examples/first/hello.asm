; A first guest: 16-bit code that prints a text to the debug console, port 0xE9, and halts.
bits 16
org 0
    mov si, text
next:
    lodsb
    test al, al
    jz done
    out 0xe9, al
    jmp next
done:
    hlt
text: db "Hello from my guest", 10, 0
